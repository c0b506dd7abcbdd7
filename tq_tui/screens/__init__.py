"""Screens and dialogs, a class each. They show the view they are given; the app acts on choices."""
