"""Decoding of uploads in processes of their own, bounded in memory and time."""
