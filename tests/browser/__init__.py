"""The page, and hostile ones, in a real Chromium. Start at `chromium.Browser`."""
