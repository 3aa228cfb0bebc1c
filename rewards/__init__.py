"""One file per reward, each a template for an outside plug-in. Installed as ``genrl.rewards``."""

if __name__ != "genrl.rewards":  # in the repository root `import rewards` would make a second copy of every module
    raise ImportError(f"This folder is the package genrl.rewards, not {__name__}: run `pip install -e .`, then `import genrl.rewards`.")
