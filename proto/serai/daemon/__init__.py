"""What every daemon of Serai is besides its work: settings, log lines, a ready file, an end on SIGTERM."""
