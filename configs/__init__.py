"""The configuration files, ``<method>/<model>.yaml``, as package data: ``importlib.resources.files("genrl.configs")``."""

if __name__ != "genrl.configs":  # in the repository root `import configs` would find the same folder under a second name
    raise ImportError(f"This folder is the package genrl.configs, not {__name__}: run `pip install -e .`, then read `genrl.configs`.")
