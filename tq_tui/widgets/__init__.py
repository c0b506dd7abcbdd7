"""What is on the screens. A widget draws what it is given, and says what was done to it; it asks nobody."""
