(* A thread waits inside of Part, then in the handler of an exception that came through Part. *)

let lines = ref ""
let step = ref 0
let lock = Mutex.create ()
let changed = Condition.create ()

let wait_for n =
  Mutex.lock lock;
  while !step < n do
    Condition.wait changed lock
  done;
  Mutex.unlock lock

let move n =
  Mutex.lock lock;
  step := n;
  Condition.broadcast changed;
  Mutex.unlock lock

let body () =
  let leave () =
    move 1;
    wait_for 2;
    raise Exit
  in
  (try ignore (Part.hold leave)
   with Exit ->
     move 3;
     wait_for 4);
  lines := Printexc.get_backtrace ()

let thread = ref None

let answer = function
  | "start" ->
      thread := Some (Thread.create body ());
      wait_for 1;
      "started"
  | "raise" ->
      move 2;
      wait_for 3;
      "raised"
  | "end" ->
      move 4;
      Option.iter Thread.join !thread;
      String.concat "|" (String.split_on_char '\n' !lines)
  | _ -> "what?"

let () =
  Printexc.record_backtrace true;
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
