"""nsdcap: captions and pictures from brain activity, and what of a captioner the cortex follows.

Importing this package imports nothing heavy: torch and its kin are loaded by the stages that need them.
"""

__version__ = "0.2.0"
