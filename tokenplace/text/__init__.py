"""Bytes of tokens → text and what is found in it. Start at `choice.Choice`."""
