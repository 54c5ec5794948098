"""Damaged inputs of every kind end in a message for the user, never in a traceback. Seeds are fixed.

34,444 inputs here: 8,056 files of runs, 9,580 of tokenizers, 3,630 of Hugging Face models, 2,640 of texts, 5,250 of
conversations, 1,800 of the planner, 3,488 commands, recipe files and values of fields. Each is a valid one with one to
three places damaged (mutations.py); what may come out is a value, or a UserError of at most 2,000 characters.

More are in tests/data/test_source_fuzz.py (4,000 files of text) and tests/training/test_digests.py (4,100 checkpoints).
"""
