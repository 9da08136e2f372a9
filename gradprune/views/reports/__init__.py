"""Reports: HTML pages of a defence, a repair, a scan and a bench."""
