val name : string
val f : int -> int
val hold : (unit -> int) -> int
