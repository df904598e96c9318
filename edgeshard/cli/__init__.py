"""The `esc` command: a module for each sub-command; it parses, the packages act."""
