"""The command line: generated from fields and actions, plus following and tables."""
