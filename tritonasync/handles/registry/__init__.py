"""From a config to a handle: fields and files, architectures by name, plugins."""
