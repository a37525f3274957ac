"""Where Hydra accepts plugins from; the code is in onebox.sweep."""
