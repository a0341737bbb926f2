let calls = ref 0

let version () =
  incr calls;
  1

let count () = !calls
