package viewtest
func init(){ Accepted=append(Accepted, Difference{ID:"R2",Match:func(o *Op,got,want Result)bool{return o.Call=="removexattr"&&got.Err=="ENODATA"&&want.Err==""}}) ; _skipKernel=true }
