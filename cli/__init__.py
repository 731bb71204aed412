"""The front door: one thin file per command, each imported only when it is called."""
