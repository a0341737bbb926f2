exception Limit of int

val name : string
val f : int -> int
val seen : string -> int
