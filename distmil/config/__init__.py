"""The typed configuration, and how it is read from YAML and overrides."""
