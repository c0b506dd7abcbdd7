"""The widgets of the screens. A widget draws what it is given and posts messages; it asks nobody."""
