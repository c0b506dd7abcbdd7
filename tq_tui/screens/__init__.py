"""The screens and dialogs, a class each. They show the view they are given and report choices; the app acts."""
