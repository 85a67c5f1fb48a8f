"""Owns what is said where the compiled modules are missing or do not load; imported before them."""

try:
    from . import _core, _ingest  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"turnpack's compiled core is missing or does not load ({error}); rebuild it with "
        "`pip install --force-reinstall --no-deps turnpack`, or in a checkout with "
        "`python setup.py build_ext --inplace`"
    ) from error
