"""The steps of the baseline: tables, evidence, placement, search, judgement."""
