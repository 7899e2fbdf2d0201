"""Reading run directories: tables, verdicts and pictures. Training imports none of it."""
