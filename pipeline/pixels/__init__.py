"""What images.py leans on: sniffing, color, resizing, hashing."""
