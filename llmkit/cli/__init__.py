"""The command line: one command per file, wired together in `main`.

Data goes to stdout and words to stderr. The commands use llmkit as any application does and know no backend.
"""
