"""What fetch.py leans on: addresses, names, targets, answers, bodies, opt-outs, turns."""
