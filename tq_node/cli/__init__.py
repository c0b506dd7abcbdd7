"""The options of ``twistd taskqueue``, their variables and their file, checked, as one value.

``option_table`` has one row for each option. ``config.load`` reads all sources (command line over
environment over file) into a frozen ``NodeSettings``, by the parsers of ``parse`` and
``addresses``; a wrong value is an error that names the option.
``options`` is the glue to twistd. Nothing here opens a port or a store."""
