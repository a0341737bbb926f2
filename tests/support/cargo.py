"""A small program in Rust, with a library beside it, built by cargo, that answers lines."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.support.talk import Talking

DEBIANS: Final = "/usr/bin/cargo"
MANIFEST: Final = """
[workspace]
members = ["shapes"]
[package]
name = "server"
version = "0.1.0"
edition = "2021"
[dependencies]
shapes = { path = "shapes" }
"""
LIBRARY: Final = """
[package]
name = "shapes"
version = "0.1.0"
edition = "2021"
"""
SHAPES: Final = """
pub trait Shape { fn area(&self) -> i64; }
pub struct Square { side: i64 }
impl Shape for Square { fn area(&self) -> i64 { self.side * self.side } }
pub fn make() -> Vec<Box<dyn Shape + Send>> { vec![Box::new(Square { side: 3 })] }
"""
MAIN: Final = """
mod work;
use std::io::BufRead;
fn main() {
    std::panic::set_hook(Box::new(|_| {}));
    let shapes = shapes::make();
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        println!("{}", work::answer(&shapes, line.unwrap().parse().unwrap()));
    }
}
"""
WORK: Final = """
use shapes::Shape;
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};
static CALLS: AtomicI64 = AtomicI64::new(0);
thread_local! { static OWN: Cell<i64> = Cell::new(0); }
fn risky(n: i64) -> i64 {
    if n == 3 { panic!("three"); }
    n
}
fn largest<T: PartialOrd + Copy>(items: &[T]) -> T {
    let mut best = items[0];
    for &item in items { if item > best { best = item; } }
    best
}
pub fn answer(shapes: &[Box<dyn Shape + Send>], n: i64) -> i64 {
    CALLS.fetch_add(1, Ordering::SeqCst);
    OWN.with(|own| own.set(own.get() + 1));
    let areas: Vec<i64> = shapes.iter().map(|shape| shape.area()).chain([1]).collect();
    let risk = std::panic::catch_unwind(|| risky(n)).unwrap_or(99);
    let own = OWN.with(|own| own.get());
    largest(&areas) * 10_000 + risk * 100 + CALLS.load(Ordering::SeqCst) + own
}
"""


def toolchains() -> list[str]:
    """Return each cargo of this machine: Debian's, and another one that comes first."""
    return sorted({DEBIANS, shutil.which("cargo") or DEBIANS})


class Crate(Talking):
    """Sources, what cargo makes of them, and at most one process of it."""

    def __init__(self, folder: Path, cargo: str) -> None:
        """Write the sources and build them."""
        self.folder, self.cargo = folder, cargo
        self.env = dict(os.environ)
        if cargo == DEBIANS:
            self.env["PATH"] = "/usr/bin:/bin"
        texts = {
            "Cargo.toml": MANIFEST, "shapes/Cargo.toml": LIBRARY, "shapes/src/lib.rs": SHAPES,
            "src/main.rs": MAIN, "src/work.rs": WORK,
        }  # fmt: skip
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        self.build()

    @property
    def command(self) -> list[str]:
        """What builds it."""
        return [self.cargo, "build", "--offline", "--quiet"]

    @property
    def executable(self) -> Path:
        """The program."""
        return self.folder / "target/debug/server"

    def build(self) -> None:
        """Build what changed."""
        subprocess.run(self.command, cwd=self.folder, env=self.env, check=True)

    def start(self, *before: str) -> int:
        """Start the program, under a command if one is given; return the pid."""
        self.process = subprocess.Popen(
            [*before, str(self.executable)],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if before else None,
            text=True,
        )
        assert self.line() == "ready"
        return self.process.pid

    def ask(self, number: int) -> int:
        """Send a number, return the answer."""
        self.say(str(number))
        return int(self.line())

    def edit(self, name: str, old: str, new: str) -> None:
        """Save an edited source."""
        path = self.folder / name
        text = path.read_text()
        assert old in text, old
        path.write_text(text.replace(old, new))
