"""One class for each screen and each dialog. They show the view they are given and say what was chosen; the app acts."""
