"The interface of progress listeners."

__all__ = ['Progress']


class Progress:
    "Listens to the progress of a study; this base class ignores everything"
    def plan(self, runs:list)->None: "Called once with all runs of the study, finished ones included"
    def start(self, what:object, epochs:int)->None: "Called when a run or the source stage starts"
    def epoch(self, epoch:int, done:float)->None: "Called after each batch with the share of the epoch that is done"
    def done(self, row:dict, skipped:bool=False)->None: "Called with a run's result; `skipped`: it was finished before"
    def running(self, pieces:list)->None: "Called with `(run, epochs done)` of each run that other processes work on"
    def say(self, text:str)->None: "Called with a line for the reader"
