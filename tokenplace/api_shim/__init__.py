"""The HTTP API that apps on this machine speak, and its server. Start at `app.create_app`."""
