"""The code of the pages in docs/howto/. Each module is one page's, word for word."""
