"""deidbench: how private and how useful is a face anonymizer, compared with the others?"""

__version__ = "0.1.0"
