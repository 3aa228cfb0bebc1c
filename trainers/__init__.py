"""One launchable file per method. Installed as ``genrl.trainers``."""

if __name__ != "genrl.trainers":  # in the repository root `import trainers` would make a second copy of every module
    raise ImportError(f"This folder is the package genrl.trainers, not {__name__}: run `pip install -e .`, then `import genrl.trainers`.")
