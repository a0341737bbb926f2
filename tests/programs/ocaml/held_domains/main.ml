(* A domain computes inside of Part until it is told to end. *)

let step = Atomic.make 0

let wait_for n =
  while Atomic.get step < n do
    Domain.cpu_relax ()
  done

let compute () =
  Atomic.set step 1;
  wait_for 2;
  7

let domain = ref None

let answer = function
  | "start" ->
      domain := Some (Domain.spawn (fun () -> Part.hold compute));
      wait_for 1;
      "started"
  | "end" ->
      Atomic.set step 2;
      Option.iter (fun held -> ignore (Domain.join held)) !domain;
      "ended"
  | _ -> "what?"

let () =
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
