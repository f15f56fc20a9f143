"""An agent at work, as far as its memory is concerned: what it has said and heard grows, caches fill and lose what is old,
an index of a project changes here and there, text is searched and taken apart.

A step for each line "step" on standard input, answered with a line. Ends with the input. Equal in every run.
"""

import json
import os
import random
import re
import sys

os.setsid()
chance = random.Random(4)

WORDS = ["".join(chance.choices("etaoinshrdlucmfwypvbgkjqxz", k=chance.randint(2, 11))) for _ in range(4000)]
COMMON = [1 / (rank + 8) for rank in range(len(WORDS))]


def text(words):
    said = chance.choices(WORDS, COMMON, k=words)
    for place in range(0, words, 14):
        said[place] = "\n" + said[place].capitalize()
    return " ".join(said)


class Node:
    """A file or a folder of the project, as the agent remembers it."""

    def __init__(self, name, depth):
        self.name = name
        self.size = chance.randrange(1 << 20)
        self.notes = {"seen": 0, "digest": f"{chance.getrandbits(128):032x}"}
        self.children = [Node(f"{name}/{number}", depth - 1) for number in range(7)] if depth else []

    def walk(self):
        yield self
        for child in self.children:
            yield from child.walk()


class Agent:
    def __init__(self):
        self.documents = {f"document {number}": text(2500) for number in range(300)}
        self.project = Node("project", 5)
        self.nodes = list(self.project.walk())
        self.embeddings = {number: [chance.random() for _ in range(64)] for number in range(1500)}
        self.history = []
        self.transcript = ""
        self.found = {}
        self.steps = 0
        for _ in range(20):
            self.step()

    def step(self):
        self.steps += 1
        answer = self.use_tool()
        self.remember(answer)
        self.touch_project()

    def use_tool(self):
        name = chance.choice(list(self.documents))
        word = chance.choices(WORDS, COMMON)[0]
        places = [match.start() for match in re.finditer(rf"\b{word}\b", self.documents[name], re.IGNORECASE)]
        self.found[name, word] = places
        while len(self.found) > 200:
            self.found.pop(next(iter(self.found)))
        if self.steps % 3 == 0:  # a document was written anew
            self.documents[name] = self.documents[name].replace(word, word.upper())
        if self.steps % 5 == 0:  # one that is old makes room
            self.documents.pop(next(iter(self.documents)))
            self.documents[f"document {300 + self.steps}"] = text(2500)
        return {"tool": "search", "document": name, "word": word, "places": places[:50], "output": text(400)}

    def remember(self, answer):
        self.history.append({"role": "assistant", "content": text(80), "step": self.steps})
        self.history.append({"role": "tool", "content": answer, "step": self.steps})
        packed = json.dumps(self.history[-40:])
        assert json.loads(packed)[-1]["step"] == self.steps
        self.transcript += json.dumps(self.history[-2:], indent=1) + "\n"

    def touch_project(self):
        for node in chance.sample(self.nodes, 30):
            node.notes["seen"] = self.steps
            node.notes["digest"] = f"{chance.getrandbits(128):032x}"
            node.size += 1
        for number in chance.sample(range(1500), 5):
            self.embeddings[number] = [chance.random() for _ in range(64)]


def main():
    agent = Agent()
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "step":
            agent.step()
        print(f"step {agent.steps}, {len(agent.transcript)} characters of transcript", flush=True)


main()
