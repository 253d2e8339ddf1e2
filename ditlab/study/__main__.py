"""``python -m ditlab.study FOLDER RUN``: one worker of a study; the study starts it."""

from ditlab.study.worker import main

if __name__ == "__main__":
    main()
