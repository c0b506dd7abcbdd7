"""The widgets of the screens. Each draws what it is given and posts messages; it asks nobody."""
