"""Where everything lives that outlives the process: files, tables, the stage ledger, checkpoints."""
