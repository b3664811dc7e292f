"""Getting many pieces of work done once each: in this process, in several, on a cluster, or by several processes for each piece.

Whoever takes part shares a folder and nothing else. A piece is claimed (`store.claim`), done or gone on with, and its result read
by all; so it does not matter how many invocations, workers or machines there are, nor which of them die. Workers are submitit's,
on this machine and on Slurm alike; the processes of one piece are torchrun's."""


__all__ = ['Progress']



class Progress:
    "Told what a study does; the default tells nobody"
    def plan(self, runs:list)->None: "These runs will be done, or skipped if finished"
    def start(self, what:object, epochs:int)->None: "A run or the source stage begins, of so many epochs"
    def epoch(self, epoch:int, done:float)->None: "Epoch number, and the part of its batches that is done"
    def done(self, row:dict, skipped:bool=False)->None: "A run has ended"
    def running(self, pieces:list)->None: "What other processes are at: `[(run, epochs done)]`"
    def say(self, text:str)->None: "A line for the reader"
