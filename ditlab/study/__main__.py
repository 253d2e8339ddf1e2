"""``python -m ditlab.study FOLDER TRAINING``: one worker process of a study; ``run_study`` starts it."""

from ditlab.study.worker import main

if __name__ == "__main__":
    main()
