"""The store: commits, local folders, object stores."""
