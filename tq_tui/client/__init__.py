"""The only room of the console that does IO: one protocol, one implementation over HTTP, one that is scripted."""
