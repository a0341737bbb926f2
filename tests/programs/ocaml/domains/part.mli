val first : int
val second : int
val work : int -> int
