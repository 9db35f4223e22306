"""Ids and bytes of tokens → text and what is found in it. Start at `choice_text.ChoiceText`."""
