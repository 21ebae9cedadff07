"""Score files to files: a job that resumes where it stopped."""
