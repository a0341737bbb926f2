val number : int
val hold : (unit -> int) -> int
