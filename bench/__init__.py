"""Engines, paired decode benchmark, quality, gate, report. Works without torch."""
