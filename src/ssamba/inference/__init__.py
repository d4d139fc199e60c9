"""Recordings in, arrays out: embedding and classification of audio of any length."""
