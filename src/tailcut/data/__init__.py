"""Public-domain English prose packaged for the demo (`tailcut.texts` finds it); README.md says where it is from."""
